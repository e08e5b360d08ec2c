"""The built-in world: one scene shown in every medium, and checkers that read it back.

Import the module you need: scene, captions, picture, clip, sound, speech, check, questions, edits.
"""
