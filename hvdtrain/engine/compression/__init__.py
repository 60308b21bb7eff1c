"""How a group of gradients is summed over ranks, by `comm.compression`; one file for each way."""
