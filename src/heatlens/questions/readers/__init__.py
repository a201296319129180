"""One reader per data set format; :data:`heatlens.registry.DATASETS` names them.

A new format is one module here, with a class derived from
:class:`~heatlens.questions.readers.base.FileReader`, one registry entry, and one line in
:data:`~heatlens.questions.readers.layouts.LAYOUTS`.
"""
