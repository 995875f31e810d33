"""One public function per file: what the commands of the command line do."""
