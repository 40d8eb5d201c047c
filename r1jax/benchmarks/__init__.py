"""What the paper measures: questions, how they are asked, the statistics of the answers."""
