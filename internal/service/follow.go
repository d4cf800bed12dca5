package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"purchase-relay/internal/secret"
)

var errEmptySecret = errors.New("the file is empty")

// FollowSecret reads a secret's file every so often until ctx ends, and tells each new content. It polls, because a mounted
// secret is replaced by switching a link, which file watchers miss. An unreadable or empty file is told once and changes
// nothing: it may be in the middle of being written.
func FollowSecret(ctx context.Context, path string, current secret.Text, every time.Duration, changed func(secret.Text), wrong func(error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	told := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		value, err := readSecret(path)
		switch {
		case err != nil && !told:
			told = true
			wrong(err)
		case err == nil:
			told = false
			if value != current {
				current = value
				changed(value)
			}
		}
	}
}

func readSecret(path string) (secret.Text, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", errors.Unwrap(err))
	}
	value := strings.TrimRight(string(data), "\r\n")
	if value == "" {
		return "", errEmptySecret
	}
	return secret.Text(value), nil
}
