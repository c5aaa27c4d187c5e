"""`ssmast compare`: which objective, recipe or setting is better, at equal time, and how sure."""
