"""From an exported network to an artifact.

``lower`` fuses the graph into kernel calls, ``ops`` says what each operator becomes, ``constants`` packs weights,
``memory`` places activations, ``tuner`` picks schedules, ``emit_c`` writes the program that runs the calls, and
``artifact`` builds and writes the folder that ships.
"""
