"""Alarms of one cause as one incident: timeline, evidence, notifications, silences."""
