"""Does it help? What techniques bring and cost, measured in trials that several processes may share."""
