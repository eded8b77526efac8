"""What reads everything and changes nothing: the report of a run, the health of layers, diagnoses.

A run with these techniques is the plain one to the bit.
"""
