package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/secret"
)

// FollowInterval is the interval at which the file of a secret is read.
const FollowInterval = time.Second

// maxSecret is the size limit of a secret's file in bytes.
const maxSecret = 1 << 16

// The errors of a secret's file.
var (
	errEmptySecret = errors.New("the file is empty")
	errLargeSecret = errors.New("the file is larger than 64 KiB")
	errNotRegular  = errors.New("not a regular file")
)

// FollowSecret reads the file that the variable name_FILE names every FollowInterval until ctx ends, and
// applies each new content. Without the variable it returns immediately. current is the value of the start;
// apply returns an error without the secret for an unusable one, which leaves the one before in force.
//
// A content counts once two consecutive reads return it: a write may be in progress. An unreadable, empty or
// unusable file is logged once with the remedy, and once more when it is usable again. It polls because
// Kubernetes replaces a mounted secret by switching a symbolic link, which file watchers miss.
func FollowSecret(
	ctx context.Context, getenv func(string) string, name string, current secret.String,
	apply func(secret.String) error, remedy string, log *zap.Logger,
) {
	path := getenv(name + "_FILE")
	if path == "" {
		return
	}
	log = log.With(zap.String("file", name+"_FILE"))
	type reading struct {
		value   secret.String
		problem string
	}
	read := func() reading {
		value, err := rereadSecret(path)
		if err != nil {
			return reading{problem: err.Error()}
		}
		return reading{value: value}
	}
	ticker := time.NewTicker(FollowInterval)
	defer ticker.Stop()
	last, settled, failed := reading{value: current}, reading{value: current}, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := read()
		if now != last || now == settled {
			last = now
			continue
		}
		settled = now
		problem := now.problem
		if problem == "" && now.value != current {
			if err := apply(now.value); err != nil {
				problem = err.Error()
			} else {
				current = now.value
			}
		}
		switch {
		case problem != "":
			failed = true
			log.Error("Secret file unusable; keeping the old secret", zap.String("error", problem),
				zap.String("remedy", remedy))
		case failed:
			failed = false
			log.Info("Secret file usable again")
		}
	}
}

// rereadSecret is readSecret for a regular file: it does not wait for the writer of a pipe.
func rereadSecret(path string) (secret.String, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", readError(err)
	case !info.Mode().IsRegular():
		return "", errNotRegular
	}
	return readSecret(path)
}

func readSecret(path string) (secret.String, error) {
	file, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return "", readError(err)
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, maxSecret+1))
	switch {
	case err != nil:
		return "", readError(err)
	case len(data) > maxSecret:
		return "", errLargeSecret
	}
	value := strings.TrimRight(string(data), "\r\n")
	if value == "" {
		return "", errEmptySecret
	}
	return secret.String(value), nil
}

// readError returns an error without the file's path.
func readError(err error) error { return fmt.Errorf("read the file: %w", errors.Unwrap(err)) }
