"""Guards of a run: functions called from the loop that end a run which has gone wrong."""
