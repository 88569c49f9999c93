"""From runs to facts about runs, arms and factors; no torch here."""
