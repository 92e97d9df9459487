"""What everything stands on: settings, command lines, the results log, the machine."""
