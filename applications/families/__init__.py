"""Kinds of tasks: texts classified, words tagged, text written."""
