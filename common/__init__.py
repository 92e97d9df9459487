"""What the scripts share, in rooms. Each may import from those below it in this list: report,
judge, speed, deploy, train, models and cost, data, base. export and predict are commands.
"""
