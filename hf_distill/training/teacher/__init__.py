"""The teacher: live, or stored in the columns of a data set."""
