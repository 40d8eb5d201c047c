"""What a training stage stands on: its run and config, train state, critic, metrics."""
