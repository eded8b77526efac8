"""What the techniques cost, measured; `make bench` runs it and writes the figures down."""
