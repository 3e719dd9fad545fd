"""What comes from outside and goes there: each kind is read and checked in one place, for the command line and Python alike."""
