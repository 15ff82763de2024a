"""What no graph could do as the forward does it, so that it is refused when it is met (V2)."""
