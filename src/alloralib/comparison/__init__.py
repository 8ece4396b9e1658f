"""Whether one method is better than another: paired differences, their intervals and tests."""
