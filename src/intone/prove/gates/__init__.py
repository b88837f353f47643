"""What a change must pass before its speed is looked at: gates that judge recorded evidence"""
