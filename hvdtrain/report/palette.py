"""Colours that readers with any colour vision can tell apart.

Source: Okabe & Ito 2008, https://jfly.uni-koeln.de/color/. Their green is left out: beside
vermillion it is a pair of red and green.
"""

BLUE, ORANGE, PURPLE, SKY, VERMILLION, YELLOW, BLACK = OKABE_ITO = (
    *("#0072b2", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000"),
)
LINES = (BLUE, ORANGE, PURPLE, BLACK, SKY, VERMILLION)
"""For lines on white, in this order. Yellow is too pale for a thin line."""
DASHES = ("-", "--", "-.", ":")
"""Line styles that go with LINES, so that lines that lie on each other are both seen."""
