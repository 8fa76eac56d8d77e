// SPDX-License-Identifier: Apache-2.0

package rego

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What a policy may be at most.
const (
	maxFile  = 1 << 20 // bytes
	maxFiles = 256
)

// read takes a policy from a file, or from all *.rego of a folder and those below it, and its data
// from a JSON file, "" for none. Names of modules are relative to the folder.
func read(path, dataPath string) (sources, error) {
	s := sources{modules: map[string]string{}, tests: map[string]string{}, data: map[string]any{}}
	st, err := os.Stat(path)
	if err != nil {
		return s, err
	}
	if st.IsDir() {
		err = s.readFolder(path)
	} else {
		err = s.readModule(filepath.Dir(path), filepath.Base(path))
	}
	if err != nil {
		return s, err
	}
	if len(s.modules) == 0 {
		return s, fmt.Errorf("%s holds no policy; write one into a file *.rego", path)
	}
	return s, s.readData(dataPath)
}

func (s *sources) readFolder(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && path == dir {
			return err
		}
		if strings.HasPrefix(d.Name(), ".") { // editors' own, and the former mounts of a config map
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() || filepath.Ext(path) != ".rego" {
			return nil
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return s.readModule(dir, name)
	})
}

func (s *sources) readModule(dir, name string) error {
	text, err := readFile(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	if strings.HasSuffix(name, "_test.rego") {
		s.tests[name] = text
	} else {
		s.modules[name] = text
	}
	if len(s.modules)+len(s.tests) > maxFiles {
		return fmt.Errorf("%s holds more than %d files of a policy; split it", dir, maxFiles)
	}
	return nil
}

func (s *sources) readData(path string) error {
	if path == "" {
		return nil
	}
	text, err := readFile(path)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader([]byte(text)))
	dec.UseNumber()
	if err := dec.Decode(&s.data); err != nil {
		return fmt.Errorf("%s: the data must be a JSON object: %w", path, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) || s.data == nil {
		return fmt.Errorf("%s: the data must be one JSON object", path)
	}
	s.raw = text
	return nil
}

func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	if len(text) > maxFile {
		return "", fmt.Errorf("%s is larger than %d bytes; split it", path, maxFile)
	}
	return string(text), nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
