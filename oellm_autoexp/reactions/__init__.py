"""When this, then that: restart policies, conditions, actions. Everything here is pure; the host acts."""
