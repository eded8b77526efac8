"""What reads everything and changes nothing."""
