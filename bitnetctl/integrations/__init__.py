"""Callbacks for other trainers; each module needs the library of its name, and an extra that installs it."""
