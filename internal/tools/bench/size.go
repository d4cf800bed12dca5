package main

import (
	"context"
	"os"
	"path/filepath"
)

// size measures the binaries as they are shipped: an image is one of them and the certificate authorities' list.
func size(_ context.Context, b *bench) error {
	for _, name := range []string{"ingest", "tiktok-worker"} {
		info, err := os.Stat(filepath.Join(b.dir, name))
		if err != nil {
			return err
		}
		b.report.add(name+", static and stripped", "MB", series{float64(info.Size()) / 1e6}, atMost(25))
	}
	return nil
}
