"""From the encoded bytes of an image to normalised pixels. Read `recipes.py` first, then `graphs.py`."""
