"""What people read: tables, figures, notebooks and the site, all made from records."""
