"""What the notebooks are made with: their setup and pictures, and the command that executes them."""
