"""Files that survive kills and damage: atomic, checksummed, locked; and the settings and time budgets they hold."""
