"""Stages: what is written for one heat map. The scripts in Attention_Map/ only call these."""
