"""The runner: plan -> read -> explain -> stage -> write, with ledger, lock, merge and failures."""
