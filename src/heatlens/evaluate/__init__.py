"""Does a map point at the right place?"""
