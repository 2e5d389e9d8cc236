"""From records of SAEs to the tables of a study."""
