"""Ready lists, reference models and their data: that they are what they say, train, and go through YAML.

Fine-tuning is tested here on what others or the demo have trained.
"""
