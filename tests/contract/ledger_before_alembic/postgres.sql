CREATE TABLE partitions (
    run_id character varying(16) NOT NULL,
    number integer NOT NULL,
    counts json NOT NULL,
    finished_at timestamp with time zone NOT NULL
);
CREATE TABLE runs (
    run_id character varying(16) NOT NULL,
    view character varying(200) NOT NULL,
    space integer,
    key character varying(64) NOT NULL,
    state character varying(16) NOT NULL,
    plan json NOT NULL,
    counts json NOT NULL,
    error character varying,
    started_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone
);
CREATE TABLE spaces (
    number integer NOT NULL,
    encoder_version character varying(12) NOT NULL,
    artifact_url character varying NOT NULL,
    state character varying(16) NOT NULL,
    created_at timestamp with time zone NOT NULL,
    facts json NOT NULL
);
INSERT INTO partitions VALUES ('3333333333333333', 0, '{"rows": 7}', '2026-11-22 21:28:46.227867+00');
INSERT INTO runs VALUES ('1111111111111111', 'user_embedding_s1', 1, 'k1', 'committed', '{"end": "2026-11-01", "from_history": false}', '{"online_rows": 5}', NULL, '2026-11-22 21:28:46.146785+00', '2026-11-22 21:28:46.164946+00');
INSERT INTO runs VALUES ('2222222222222222', 'user_activity', NULL, 'k2', 'failed', '{}', '{}', 'OSError: disk full', '2026-11-22 21:28:46.18407+00', '2026-11-22 21:28:46.199432+00');
INSERT INTO runs VALUES ('3333333333333333', 'user_embedding_s2', 2, 'k3', 'running', '{}', '{}', NULL, '2026-11-22 21:28:46.207749+00', NULL);
INSERT INTO spaces VALUES (2, 'bbbbbbbbbbbb', '/artifacts/bbbbbbbbbbbb', 'trained', '2026-11-22 21:28:46.129456+00', '{"dataset": "ml1m", "raw_views": ["user_activity"]}');
INSERT INTO spaces VALUES (1, 'aaaaaaaaaaaa', '/artifacts/aaaaaaaaaaaa', 'ready', '2026-11-22 21:28:46.108424+00', '{"dataset": "ml1m", "raw_views": ["user_activity"]}');
ALTER TABLE ONLY partitions
    ADD CONSTRAINT partitions_pkey PRIMARY KEY (run_id, number);
ALTER TABLE ONLY runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (run_id);
ALTER TABLE ONLY runs
    ADD CONSTRAINT runs_view_key_key UNIQUE (view, key);
ALTER TABLE ONLY spaces
    ADD CONSTRAINT spaces_encoder_version_key UNIQUE (encoder_version);
ALTER TABLE ONLY spaces
    ADD CONSTRAINT spaces_pkey PRIMARY KEY (number);
ALTER TABLE ONLY partitions
    ADD CONSTRAINT partitions_run_id_fkey FOREIGN KEY (run_id) REFERENCES runs(run_id);
ALTER TABLE ONLY runs
    ADD CONSTRAINT runs_space_fkey FOREIGN KEY (space) REFERENCES spaces(number);
