"""What is optimised: one module for each loss and for the graders of reinforcement tuning."""
