"""The smallest experiment file, for tests that send or refuse one and never run it."""

EXPERIMENT = """
name: tiny
logs: {path: log, partition: date, splits: {train: [1, 2], test: [3, 3]}}
features: [{name: user, column: user_id, kind: categorical, ids: {hash: 100}, dim: 4}]
scenarios: [{name: tab, column: tab, values: [0, 1]}]
tasks: [{name: click, column: is_click, kind: binary}]
model: {bottom: {kind: concat}, trunk: {kind: shared_bottom}, head: {kind: towers}}
"""
