"""What a mount's process leaves to the process after it: memory that the supervisor keeps.

    layout       the memory, byte by byte, and the rules that let its writer be killed between any two stores
    memory       making it: all that a supervisor needs
    handles      the open files, as the kernel knows them
    shadow       changes of metadata that are acknowledged and not yet in the journal
    link         the socket between a mount's process and its supervisor

Nothing here is on disk, and nothing outlives the machine: after a reboot the journal alone counts. Imports only the
formats and records below it, so that a supervisor stays small.
"""
