BEGIN TRANSACTION;
CREATE TABLE partitions (
	run_id VARCHAR(16) NOT NULL, 
	number INTEGER NOT NULL, 
	counts JSON NOT NULL, 
	finished_at DATETIME NOT NULL, 
	PRIMARY KEY (run_id, number), 
	FOREIGN KEY(run_id) REFERENCES runs (run_id)
);
INSERT INTO "partitions" VALUES('3333333333333333',0,'{"rows": 7}','2026-11-22 21:28:45.116940');
CREATE TABLE runs (
	run_id VARCHAR(16) NOT NULL, 
	"view" VARCHAR(200) NOT NULL, 
	space INTEGER, 
	"key" VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	"plan" JSON NOT NULL, 
	counts JSON NOT NULL, 
	error VARCHAR, 
	started_at DATETIME NOT NULL, 
	finished_at DATETIME, 
	PRIMARY KEY (run_id), 
	UNIQUE ("view", "key"), 
	FOREIGN KEY(space) REFERENCES spaces (number)
);
INSERT INTO "runs" VALUES('1111111111111111','user_embedding_s1',1,'k1','committed','{"end": "2026-11-01", "from_history": false}','{"online_rows": 5}',NULL,'2026-11-22 21:28:45.021600','2026-11-22 21:28:45.039824');
INSERT INTO "runs" VALUES('2222222222222222','user_activity',NULL,'k2','failed','{}','{}','OSError: disk full','2026-11-22 21:28:45.071530','2026-11-22 21:28:45.082855');
INSERT INTO "runs" VALUES('3333333333333333','user_embedding_s2',2,'k3','running','{}','{}',NULL,'2026-11-22 21:28:45.098910',NULL);
CREATE TABLE spaces (
	number INTEGER NOT NULL, 
	encoder_version VARCHAR(12) NOT NULL, 
	artifact_url VARCHAR NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	created_at DATETIME NOT NULL, 
	facts JSON NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (encoder_version)
);
INSERT INTO "spaces" VALUES(1,'aaaaaaaaaaaa','/artifacts/aaaaaaaaaaaa','ready','2026-11-22 21:28:44.966593','{"dataset": "ml1m", "raw_views": ["user_activity"]}');
INSERT INTO "spaces" VALUES(2,'bbbbbbbbbbbb','/artifacts/bbbbbbbbbbbb','trained','2026-11-22 21:28:44.991970','{"dataset": "ml1m", "raw_views": ["user_activity"]}');
COMMIT;
