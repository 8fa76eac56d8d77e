// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
)

// schemaKey holds the version of the form that everything in the store has, in decimal.
const schemaKey = "m/schema"

// ErrNewerSchema: a newer assay-server has written the store.
var ErrNewerSchema = errors.New("the store has a newer form")

// Migration brings what is in the store from one form to the next.
type Migration struct {
	// What it does, for the log.
	What string
	// Run does it. It may find its work half done, by a server that was stopped.
	Run func(context.Context, *Store) error
}

// Migrate brings the store to the newest form: version 1 after no migration, 2 after the first.
// Only one server does so at a time. It refuses a store that is newer (ErrNewerSchema), and
// from then on Commit refuses once a newer server has brought the store further.
func (s *Store) Migrate(ctx context.Context, migrations []Migration) error {
	newest := 1 + len(migrations)
	for {
		version, revision, err := s.schemaVersion(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("read the version of the store's form: %w", err)
		case version == 0:
			err = s.firstSchema(ctx, newest)
		case version > newest:
			return fmt.Errorf("%w: it has version %d and this assay-server knows %d; run the newer assay-server, or restore a backup from before the upgrade", ErrNewerSchema, version, newest)
		case version == newest:
			s.schema.Store(revision)
			return nil
		default:
			err = s.locked(ctx, "schema", true, func(ctx context.Context) error {
				return s.migrateOnce(ctx, migrations)
			})
		}
		if err != nil && !errors.Is(err, ErrConflict) { // else another server was quicker
			return err
		}
	}
}

func (s *Store) schemaVersion(ctx context.Context) (version int, revision int64, err error) {
	kvs, _, err := s.Snapshot(ctx, schemaKey)
	if err != nil || len(kvs) == 0 {
		return 0, 0, err
	}
	version, err = strconv.Atoi(string(kvs[0].Value))
	if err != nil || version < 1 {
		return 0, 0, fmt.Errorf("%s is %q, not a number from 1", schemaKey, kvs[0].Value)
	}
	return version, kvs[0].Revision, nil
}

// firstSchema: what is empty has the newest form; what is not was written before forms were
// numbered, and is the first.
func (s *Store) firstSchema(ctx context.Context, newest int) error {
	kvs, _, err := s.Snapshot(ctx, "m/trust_domain")
	if err != nil {
		return err
	}
	if len(kvs) > 0 {
		newest = 1
	}
	return s.setSchema(ctx, newest, 0)
}

func (s *Store) migrateOnce(ctx context.Context, migrations []Migration) error {
	version, revision, err := s.schemaVersion(ctx) // again, under the lock
	if err != nil || version > len(migrations) {
		return err
	}
	m := migrations[version-1]
	s.log.Info("bringing the store to a newer form", "version", version+1, "what", m.What)
	if err := m.Run(ctx, s); err != nil {
		return fmt.Errorf("bring the store to version %d of its form (%s): %w", version+1, m.What, err)
	}
	return s.setSchema(ctx, version+1, revision)
}

func (s *Store) setSchema(ctx context.Context, version int, after int64) error {
	_, err := s.Commit(ctx, Txn{
		Compares: []Compare{Unchanged(schemaKey, after)}, Essential: true,
		Puts: []KV{{Key: schemaKey, Value: []byte(strconv.Itoa(version))}},
	})
	return err
}
