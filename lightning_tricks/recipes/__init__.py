"""What examples, benchmarks and tests train: small reference models, and data that needs no download."""
