"""Sources of recordings.  Measuring on this machine is the only one so far."""
