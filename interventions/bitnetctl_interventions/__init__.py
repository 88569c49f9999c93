"""The built-in interventions of bitnetctl, one small file each."""
