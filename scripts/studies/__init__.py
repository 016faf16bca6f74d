"""What scripts/label_efficiency.py is made of."""
