"""What `hvdtrain data` does: pack, scan and stage a dataset. Read `pack.py` first."""
