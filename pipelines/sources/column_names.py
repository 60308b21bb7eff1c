"""What the columns of a list of images are called."""

from __future__ import annotations

PATHS = frozenset(
    [
        "path",
        "file",
        "filename",
        "filepath",
        "fname",
        "image",
        "imagepath",
        "imagefile",
        "imagefilename",
        "imagename",
        "img",
        "imgpath",
        "imgname",
    ]
)
IDS = frozenset(["id", "imageid", "imgid", "fileid", "name"])
LABELS = frozenset(
    [
        "label",
        "labels",
        "labelname",
        "class",
        "classes",
        "classname",
        "category",
        "categoryname",
        "target",
        "breed",
        "species",
        "predictionstring",
    ]
)
NUMBERS = frozenset(["classid", "classindex", "classidx", "labelid", "categoryid", "targetid"])
"""Names of columns, without `_`, `-` and blanks; those in `IDS` and `NUMBERS` count if no other is there."""
PARTS = frozenset(["split", "subset", "partition", "isvalid", "isval", "istest", "istrain"])
"""Columns that say to which part of a dataset a row belongs."""
