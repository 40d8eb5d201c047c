"""Models that judge, score or rewrite: reward models, judges of preferences, writers."""
