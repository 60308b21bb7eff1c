"""Tar shards and packed datasets on web servers and in object stores, read through a cache on this node.

`objects.py` asks for bytes and checks that an answer is of the same object as before; `blocks.py` keeps them on
disk; `reader.py` puts both together behind the interface of a local reader of shards; `paths.py` says which
objects a URL stands for, and `opening.py` makes a source of them.
"""
