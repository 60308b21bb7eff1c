"""`hvdtrain study`: batch-size studies, sharpness and loss landscapes."""
