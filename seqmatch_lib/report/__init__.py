"""What people read: tables, figures and notebooks, all made from records."""
